"""What a device's owner allows: the policy, what it refuses, where that is enforced."""
