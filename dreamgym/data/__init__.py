"""Record and check: logged experience in, episodes and segments out."""
