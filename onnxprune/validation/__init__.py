"""Two models beside each other: accuracy, agreement, size and latency, with intervals, and goals that they must meet."""
