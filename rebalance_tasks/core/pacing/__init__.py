"""How much at once, how fast, by which way and who next: small controllers without a clock."""
