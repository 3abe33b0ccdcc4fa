"""What many processes need: torchrun's environment, samplers and sums over ranks, faults, division of work."""
