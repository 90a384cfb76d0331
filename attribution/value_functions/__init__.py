"""What an answer is worth when only a coalition of its documents is read."""
