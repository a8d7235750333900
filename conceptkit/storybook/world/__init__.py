"""The drawn world that the storybook base has seen."""
