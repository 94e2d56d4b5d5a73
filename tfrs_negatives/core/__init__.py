"""What every other module stands on."""
