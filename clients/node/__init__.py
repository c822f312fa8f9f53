"""What runs on a node: the Flower app, its answers, its clients' stores, a device."""
