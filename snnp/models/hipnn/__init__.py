"""The hierarchically interacting particle neural network (HIP-NN, HIP-NN-TS), its scripted twin and its importer."""
