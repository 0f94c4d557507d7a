"""What needs torch; nothing outside this folder imports it at module level."""
