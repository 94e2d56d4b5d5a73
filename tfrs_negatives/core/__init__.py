"""What every other module stands on: columns as users bring them, and ids."""
