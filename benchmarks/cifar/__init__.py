"""CIFAR networks and images for the measurements with trained weights."""
