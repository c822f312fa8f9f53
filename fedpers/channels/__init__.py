"""What an update passes through on its way: channels."""
