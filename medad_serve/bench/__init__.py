"""What decoding, preparing, training and answering cost; comparisons are interleaved in one run."""
