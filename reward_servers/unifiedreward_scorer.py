"""UnifiedReward, or another vision-language model, asked through an OpenAI-compatible endpoint."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from astrolabe_ray.errors import DataFailure, InfraFailure
from reward_servers.scorers import ScorerSetup

MAX_SCORE = 5.0
QUESTION = (
    "This picture was generated for the caption below. Judge how well it shows what the caption says and how "
    "good it looks, on a scale from 1 (bad) to 5 (perfect). Explain in one or two sentences and end with a "
    "line of the form `Final Score: X`, where X is a number.\n\nCaption: {caption}"
)
ANSWER = re.compile(r"Final Score:\s*\**\s*([0-9]+(?:\.[0-9]+)?)", re.IGNORECASE)
NUM_QUESTIONS = 16
"""Asked at the same time."""
TIMEOUT_S = 120.0


class UnifiedRewardScorer:
    """`unifiedreward`: the score that the model writes, over 5, mean over the frames."""

    def __init__(self, setup: ScorerSetup) -> None:
        """The endpoint is not asked yet. The key is that of OPENAI_API_KEY, if the endpoint wants one."""
        import openai  # type: ignore[import-not-found, unused-ignore]

        self._errors = openai
        self._model = setup.options["model"]
        self._client = openai.OpenAI(
            base_url=setup.options["endpoint"],
            api_key=os.environ.get("OPENAI_API_KEY", "none"),
            timeout=TIMEOUT_S,
            max_retries=0,  # whoever asked this server tries again
        )
        self._threads = ThreadPoolExecutor(NUM_QUESTIONS)

    def score(self, videos: np.ndarray, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Scores float32 [B].

        Raises InfraFailure when the endpoint does not answer, DataFailure for an answer without a score.
        """
        questions = [(frame, p) for video, p in zip(videos, prompts, strict=True) for frame in video]
        answers = list(self._threads.map(lambda question: self._ask(*question), questions))
        scores = np.array(answers, np.float32).reshape(videos.shape[:2])
        return {"unifiedreward": scores.mean(axis=1)}

    def _ask(self, frame: np.ndarray, caption: str) -> float:
        image = {"type": "image_url", "image_url": {"url": as_png(frame)}}
        text = {"type": "text", "text": QUESTION.format(caption=caption)}
        try:
            answer = self._client.chat.completions.create(
                model=self._model,
                messages=[{"role": "user", "content": [image, text]}],  # type: ignore[list-item, misc]
                temperature=0,
            )
        except (self._errors.BadRequestError, self._errors.UnprocessableEntityError) as reason:
            raise DataFailure(f"{self._client.base_url} refused a frame of '{caption}': {reason}") from None
        except self._errors.OpenAIError as reason:
            raise InfraFailure(f"{self._client.base_url} did not answer: {reason}") from None
        return score_in(answer.choices[0].message.content or "", caption)


def score_in(answer: str, caption: str) -> float:
    """The last score of an answer, over 5. Raises DataFailure if it has none or one out of range."""
    found = ANSWER.findall(answer)
    if not found or not 0 <= float(found[-1]) <= MAX_SCORE:
        shown = answer.strip()[-200:] or "nothing"
        raise DataFailure(f"the answer about '{caption}' has no score from 0 to {MAX_SCORE:g}: {shown}")
    return float(found[-1]) / MAX_SCORE


def as_png(frame: np.ndarray) -> str:
    """uint8 [3, H, W] as a data address."""
    done, png = cv2.imencode(".png", np.ascontiguousarray(frame.transpose(1, 2, 0)[..., ::-1]))
    assert done
    return "data:image/png;base64," + base64.b64encode(png.tobytes()).decode()
