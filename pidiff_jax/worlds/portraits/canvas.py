"""Shapes that the embedded world is painted with: signed distances with anti-aliased edges, painted over each other."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Scalar = Float[Array, ""] | float
Plane = Float[Array, "h w"]  # one value a pixel: a coordinate, a signed distance (negative inside) or a coverage
Colour = Float[Array, "3"] | Float[Array, "h w 3"]  # one, or one a pixel where light falls on it


class Canvas:
    """Paints shapes over each other; `pixel` is the size of a pixel in head units, the width of the anti-aliased edge."""

    def __init__(self, backdrop: Float[Array, "h w 3"], pixel: Scalar):
        self.picture = backdrop
        self.pixel = pixel

    def coverage(self, distance: Plane) -> Plane:
        """How much of each pixel lies inside a shape."""
        return jnp.clip(0.5 - distance / self.pixel, 0.0, 1.0)

    def paint(self, distance: Plane, colour: Colour, opacity: Scalar | Plane = 1.0) -> Plane:
        """Paints the shape with this signed distance; returns how much of each pixel it covers now."""
        alpha = (self.coverage(distance) * opacity)[..., None]
        self.picture = self.picture * (1.0 - alpha) + colour * alpha
        return alpha[..., 0]


def ellipse(x: Plane, y: Plane, rx: Scalar, ry: Scalar) -> Plane:
    """Distance to an ellipse, exact on its edge to first order."""
    k = jnp.sqrt((x / rx) ** 2 + (y / ry) ** 2) + 1e-6
    gradient = jnp.sqrt((x / rx**2) ** 2 + (y / ry**2) ** 2) + 1e-6
    return k * (k - 1.0) / gradient


def lens(x: Plane, y: Plane, rx: Scalar, ry: Scalar) -> Plane:
    """Distance to an almond between two parabolas that meet in corners at (-rx, 0) and (rx, 0), exact on its edge."""
    slope = 2.0 * ry * x / rx**2
    return (jnp.abs(y) - ry * (1.0 - (x / rx) ** 2)) / jnp.sqrt(1.0 + slope**2)


def rounded_box(x: Plane, y: Plane, rx: Scalar, ry: Scalar, radius: Scalar) -> Plane:
    qx, qy = jnp.abs(x) - rx + radius, jnp.abs(y) - ry + radius
    outside = jnp.sqrt(jnp.maximum(qx, 0.0) ** 2 + jnp.maximum(qy, 0.0) ** 2 + 1e-9)
    return outside + jnp.minimum(jnp.maximum(qx, qy), 0.0) - radius


def ramp(table: Float[np.ndarray, "n 3"], position: Scalar) -> Float[Array, "3"]:
    """Linear interpolation in a table of colours; position in [0, 1]."""
    position = jnp.clip(position, 0.0, 1.0) * (len(table) - 1)
    low = jnp.clip(jnp.floor(position).astype(jnp.int32), 0, len(table) - 2)
    colours = jnp.asarray(table)
    return colours[low] + (colours[low + 1] - colours[low]) * (position - low)
