"""The normalisation lab: small networks that are recorded while they train, and statements held against them."""
