"""For people who compare methods: benchmark, cost, studies. Nothing but `cli` imports it."""
