"""How a model learns: what the loss weighs, how the optimiser carries on, what augmentation adds."""
