"""For people who compare methods: benchmark, cost, studies. Only `cli` imports it."""
