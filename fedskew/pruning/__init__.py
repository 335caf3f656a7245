"""Score → decide → slice: criteria know nothing of deciding, deciding nothing of criteria, slicing of neither."""
