"""What is remembered of a sweep: `base` is the protocol, `factory` builds trackers, the others are one store each."""
