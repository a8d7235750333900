"""What is to be learned, checked once where it enters."""

from __future__ import annotations

from dataclasses import dataclass, replace

from conceptkit.errors import BadRecipe
from conceptkit.learn.subject import Subject
from conceptkit.learn.train_config import TrainConfig


@dataclass(frozen=True, eq=False)
class TrainRequest:
    """Subjects to learn in one run, and how.

    subjects: with their photos, class nouns, kinds and class images. config: the recipe; where there are
    class images it holds on to them. name: of the joint concept of several. resume: go on with learning that
    was stopped. new_version: names may be taken.

    Raises BadRecipe where these do not go together.
    """

    subjects: tuple[Subject, ...]
    config: TrainConfig
    name: str | None = None
    seed: int = 0
    resume: bool = False
    new_version: bool = False

    def __post_init__(self) -> None:
        if not self.subjects:
            raise BadRecipe("Nothing is named that could be learned; name one thing, with photos of it")
        names = [subject.name for subject in self.subjects]
        if self.name in names:
            raise BadRecipe(
                f"The joint concept and one of its parts are both called {self.name}; name it otherwise"
            )
        for subject in self.subjects:
            if subject.class_images is not None and subject.noun is None:
                raise BadRecipe(
                    f"{subject.name} has no class that pictures could hold on to; leave --class-images out"
                )
        if any(subject.class_images is not None for subject in self.subjects):
            object.__setattr__(self, "config", with_prior(self.config))

    @property
    def names(self) -> tuple[str, ...]:
        """The names that are stored, that of the joint concept last."""
        return (*(subject.name for subject in self.subjects), *([self.name] if self.name else []))


def with_prior(recipe: TrainConfig) -> TrainConfig:
    """The recipe, holding on to pictures of the class even if it would do without any.

    Raises BadRecipe where it cannot.
    """
    if not recipe.max_train_steps:
        raise BadRecipe(
            f"{recipe.method} learns a word alone, which leaves its class as it is; leave --class-images out"
        )
    if recipe.prior_source == "base_prediction":
        raise BadRecipe(
            "prior_source = base_prediction holds on to no pictures; leave it or --class-images out"
        )
    if not recipe.prior_batch_size:
        raise BadRecipe(
            "prior_batch_size = 0 shows no picture of the class; raise it, or leave --class-images out"
        )
    return recipe if recipe.prior_loss_weight else replace(recipe, prior_loss_weight=1.0)
