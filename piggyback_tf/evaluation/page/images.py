"""The part of the page with the images that tasks get wrong, and the classes they are of."""

from piggyback_tf.evaluation.answers import Answers
from piggyback_tf.evaluation.page.markup import Markup, element, joined
from piggyback_tf.evaluation.page.pictures import Budget, Gallery, gallery
from piggyback_tf.evaluation.page.subjects import Subject, Subjects
from piggyback_tf.foreign_text import counted


def wrong_images(subjects: Subjects, most: int, data_dir: str | None) -> tuple[Markup | None, dict[str, Gallery]]:
    """Returns the part of the page, None if no answers are known, and the wrong images of each task by its label.

    Args:
        subjects: The tasks.
        most: How many images are shown of each task.
        data_dir: Where TensorFlow Datasets keeps its data sets; None for its own default.
    """
    budget = Budget()
    found: dict[str, tuple[Subject, Answers, Gallery]] = {}
    for one in subjects.tasks:
        own = gallery(one, most, budget, data_dir)
        if own is not None and one.answers is not None:
            found[one.label] = one, one.answers, own
    if not found:
        return None, {}
    notes = dict.fromkeys(own.kind.note for *_, own in found.values() if own.figures and own.kind)
    body = joined(
        [element("p", note, class_="note") for note in notes],
        [_of_task(*task, most) for task in found.values()],
    )
    return body, {label: own for label, (*_, own) in found.items()}


def _of_task(subject: Subject, answers: Answers, own: Gallery, most: int) -> Markup:
    count = len(answers.images)
    if own.wrong is None:
        told = f"There are answers to {counted(count, 'image')} of the {answers.split} split of {answers.data}."
    elif not own.wrong:
        told = f"All answers to the {counted(count, 'image')} of the {answers.split} split of {answers.data} are right."
    else:
        are = "is" if own.wrong == 1 else "are"
        wrong = own.kind.told if own.kind else "wrong"
        told = f"{own.wrong:,} of {counted(count, 'image')} of the {answers.split} split of {answers.data}"
        told += f" {are} {wrong}."
        shown = len(own.figures)
        if shown < own.wrong:
            told += f" {shown:,} of them {'is' if shown == 1 else 'are'} shown (--images={most})."
    if answers.after != subject.task:
        told += f" These are the answers after {answers.after}, the task that was learned last."
    if answers.by == "evaluate":
        told += " They were recorded by evaluate."
    return joined(
        element("h3", subject.label),
        element("p", told),
        [element("p", sentence, class_="note") for sentence in own.sentences],
        element("div", own.figures, class_="gallery wide" if own.kind and own.kind.wide else "gallery")
        if own.figures
        else None,
        own.below,
    )
