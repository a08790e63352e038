"""What a learner rank is told of a run."""

from __future__ import annotations

from dataclasses import dataclass

from astrolabe_ray.config.schema import AlgorithmConfig, LearnerConfig, LoraConfig, ModelConfig, RunConfig
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.files import anywhere


@dataclass(frozen=True)
class LearnerSpec:
    """The sections of a run's config that the learner needs."""

    model: ModelConfig
    lora: LoraConfig
    algorithm: AlgorithmConfig
    learner: LearnerConfig
    max_policy_age: int
    seed: int

    @classmethod
    def of(cls, config: RunConfig) -> LearnerSpec:
        """Raises ConfigError when a sample is to train on more timesteps than there are."""
        steps, wanted = len(config.model.denoising_steps), config.algorithm.timesteps_per_sample
        if wanted > steps:
            raise ConfigError(
                f"algorithm.timesteps_per_sample is {wanted}, but model.denoising_steps has {steps}; "
                f"use at most {steps}."
            )
        return cls(
            anywhere(config.model),
            config.lora,
            config.algorithm,
            config.learner,
            config.rollout.max_policy_age,
            config.seed,
        )
