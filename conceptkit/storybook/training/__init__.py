"""How the storybook base and its judges are trained."""
