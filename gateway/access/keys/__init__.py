"""Keys: their secrets, their scopes and verbs, and the table of them that requests are checked against."""
