"""From the model's frame to the photo's file: the change, carried to full size and kept."""
