"""Models that say how probable an answer is: a local one, or one behind an HTTP interface."""
