"""The world of photographs: a Stable Diffusion folder, and records that were prepared from photographs."""
