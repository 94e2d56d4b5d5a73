from . import recipes as recipes
