"""Quality of generated text: engines answer the same items greedily, and are compared item by item."""
