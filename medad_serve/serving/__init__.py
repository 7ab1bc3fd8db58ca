"""What TorchServe asks beyond one prediction: requests of every form, bounded decoding, watching."""
