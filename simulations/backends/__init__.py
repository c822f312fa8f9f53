"""What a run runs on: this process, or Flower with Ray."""
