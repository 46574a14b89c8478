"""What the heads of a Transformer attend to, and what it would predict after each of its layers."""
