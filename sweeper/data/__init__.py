"""What we train on: read, split, sealed, tokenised, fingerprinted. `build.build` leads in, `tokens.TokenSet` leads out."""
