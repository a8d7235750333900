"""Pictures to be judged: with classifier-free guidance alone, as every diffusers program draws them."""

from functools import partial

from conceptkit import drawing

draw = partial(drawing.draw, pag=0.0)
draw_with = partial(drawing.draw_with, pag=0.0)
