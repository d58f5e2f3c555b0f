"""The recipes by name, and what each of their values means. No torch."""
