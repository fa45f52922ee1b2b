"""Dreams: worlds as Gymnasium environments."""
