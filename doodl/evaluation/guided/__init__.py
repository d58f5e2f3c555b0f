"""How well guided generation does what it was asked, by networks that gave no gradient."""
