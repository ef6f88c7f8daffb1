"""Texts of pictures in the reader's language."""

from collections.abc import Callable, Mapping

LANGUAGES = ("en", "ko")

# What several pictures say. A picture's own texts stand beside its drawer.
KOREAN = {
    "accuracy": "정확도",
    "accuracy, %": "정확도, %",
    "test error, %": "테스트 오류율, %",
    "loss": "손실",
    "loss, nats": "손실, nat",
    "plain": "스킵 커넥션 없음",
    "shortcut {shortcut}": "숏컷 {shortcut}",
    "seed {seed}": "시드 {seed}",
    "stem": "스템",
    "head": "분류층",
    "stage {number}": "{number}단계",
    "blocks, from input to output": "블록 (입력 → 출력)",
    "chance": "무작위 추측",
}

# Gives a text in one language; {names} in it are replaced by the values.
Translate = Callable[..., str]


def translator(language: str, own: Mapping[str, str] | None = None) -> Translate:
    """What says an English text in `language`, "en" or "ko".

    Args:
        own: Korean by English, beyond `KOREAN`.

    Returns:
        say(text, **values). A text that has no Korean stays English.
    """
    korean = {**KOREAN, **(own or {})} if language == "ko" else {}

    def say(text: str, **values: object) -> str:
        return korean.get(text, text).format(**values) if values else korean.get(text, text)

    return say
