"""From a batch to the next state: log-probs, gradients of microbatches, optimiser steps."""
