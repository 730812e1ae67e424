"""Drawing for people: `Pipeline`, the recipes of pictures, and who is meant by an identity."""
