"""The embedded model and preference set that demo and tests run on."""
