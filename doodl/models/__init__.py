"""Files of models: found, pulled, hashed, and checked before anything is built of them."""
