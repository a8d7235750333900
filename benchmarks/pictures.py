"""Pictures to be judged: with classifier-free guidance alone, as every diffusers program draws them."""

from functools import partial

from conceptkit.inference import generate

draw = partial(generate.draw, pag=0.0)
draw_with = partial(generate.draw_with, pag=0.0)
