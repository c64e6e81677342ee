"""A labelling session: the facade that the server and Python programs use."""

from __future__ import annotations

import atexit
import secrets
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from headstart.cache.keys import content_key
from headstart.data.sources.addresses import absolute, user_address
from headstart.data.sources.read import read_image
from headstart.errors import OptionError, StaleAction
from headstart.files import UserPath
from headstart.labelling.actions import ActionInput, change_of, class_name
from headstart.labelling.added_images import AddedImages, added_addresses
from headstart.labelling.blind_sample import default_size, draw_order, enlarged
from headstart.labelling.frozen_pass import FrozenPass, PassOptions, PassResult
from headstart.labelling.image_list import ImageList, ImageSources, Thumbnails, require_source
from headstart.labelling.journal import Journal
from headstart.labelling.label_export import export_labels, labelled_images
from headstart.labelling.label_files import LabelFiles, SessionLock
from headstart.labelling.label_import import ImageFinder, adopt_table, change_of_answers, read_labels
from headstart.labelling.label_state import LabelChange
from headstart.labelling.label_table import LabelTable
from headstart.labelling.learner import CLOSE_SECONDS, Learnt
from headstart.labelling.learning import SessionLearning
from headstart.labelling.overview import counts_of, folders_of, learning_state
from headstart.labelling.views import Shown, images_of_view, queue_document


@final
class LabellingSession:
    """Labels for the images of a source; thread-safe. Create it with ``open``, then ``start`` it.

    Attributes:
        token: random text that identifies this process' session to pages.
        files: of the session.
        revision: incremented with each change of labels.
    """

    def __init__(
        self, options: PassOptions, files: LabelFiles, lock: SessionLock, *, multi_label: bool, seed: int
    ) -> None:
        self.token, self.revision, self.files = secrets.token_urlsafe(12), 0, files
        self.multi_label, self.seed = multi_label, seed
        self._options, self._file_lock = options, lock
        self._journal = Journal(files.journal)
        self._table = LabelTable(files.table, multi_label=multi_label)
        self._images, self._thumbnails = ImageList(files.table), Thumbnails()
        self._changed = threading.Condition(threading.RLock())
        self._writing, self._written = threading.Lock(), -1
        self._ticks, self._is_closed = 0, False
        self._order: list[int] = []
        self._learning: SessionLearning | None = None
        added = added_addresses(self._journal)
        self._pass = FrozenPass(options, self._images, changed=self._tick, finished=self._take, added=added)
        self._added = AddedImages(self._images, self._journal, compute=self._pass.joined, join=self._join)
        self._views: dict[str, tuple[object, list[int]]] = {}
        self._folder_names: tuple[object, list[str]] = None, []
        adopt_table(self._journal, self._table)

    @classmethod
    def open(
        cls,
        source: ImageSources,
        *,
        labels: UserPath | None = None,
        backbone: str = "auto",
        multi_label: bool = False,
        seed: int = 0,
        device: str = "auto",
        cache: Path | None = None,
    ) -> LabellingSession:
        """Opens the labels of a source, or begins new ones. The images are listed after ``start``.

        Args:
            source: folder, archive, table, pattern or URL of images, or a list of images.
            labels: CSV file of the labels; default: ``NAME-labels.csv`` beside the source.
            backbone: computes the features; "auto" for the default of training.
            multi_label: whether an image may have any number of labels.
            seed: of the blind sample.
            device: "auto", "cpu", "cuda" or "mps".
            cache: the cache folder; the default one if None.

        Raises:
            DataError: the source does not exist.
            LabelError: another process is labelling these images, or the journal is damaged.
            OptionError: the name of the labels file does not end in .csv.
            OutputError: the labels cannot be written.
        """
        require_source(source)
        files = LabelFiles.of_source(source) if labels is None else LabelFiles.of_table(labels)
        lock = SessionLock(files)
        try:
            return cls(PassOptions(source, backbone, device, cache), files, lock, multi_label=multi_label, seed=seed)
        except BaseException:
            lock.release()
            raise

    def start(self) -> None:
        """Lists the images and computes their features in the background."""
        atexit.register(self.close)  # or threads of PyTorch end the process with an error
        self._pass.start()

    def close(self) -> None:
        """Ends the session. Everything was written before."""
        self._pass.stop()
        with self._changed:
            if self._is_closed:
                return
            self._is_closed, learning = True, self._learning
        atexit.unregister(self.close)
        self._pass.wait(CLOSE_SECONDS)
        self._added.close(CLOSE_SECONDS)
        if learning is not None:
            learning.learner.close()
        with self._changed:
            text = self._table.text(self._journal.state)  # not what the file has: it may have been edited since
            self._journal.note({"event": "closed", "table": self._table.digest_of(text)})
            self._journal.close()
            if self.failure is not None and len(self._journal.events) == 1:  # opened for nothing: nothing is left
                self.files.remove()
            self._changed.notify_all()
        self._file_lock.release()

    def served_at(self, address: str) -> None:
        """Tells other processes that open the same labels where this session is served."""
        self._file_lock.served_at(address)

    @property
    def learning(self) -> SessionLearning | None:
        """What is learnt from the labels; None before the images are read."""
        return self._learning

    @property
    def failure(self) -> str | None:
        """Why there is no image at all, such as an empty folder; None if there are images, or may be yet."""
        return None if len(self._images) or self._pass.progress.stage != "failed" else self._pass.progress.message

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Waits for the end of the background pass, at most ``timeout`` seconds; True if the session can learn."""
        self._pass.wait(timeout)
        return self._learning is not None and self._pass.progress.stage == "ready"

    def wait_learnt(self, timeout: float | None = None) -> bool:
        """Waits until the classifier has learnt all labels; False after ``timeout`` seconds, or before it is ready."""
        learning = self._learning
        return learning is not None and self._added.wait(timeout) and learning.learner.wait(timeout)

    def _tick(self) -> None:
        """Wakes those who wait for a change."""
        with self._changed:
            self._ticks += 1
            self._changed.notify_all()

    def wait_change(self, revision: int, timeout: float) -> int:
        """Waits until the state document has changed.

        Args:
            revision: returned by the previous call; -1 at first.
            timeout: seconds.

        Returns:
            A number for the next call; it counts changes of labels and of progress.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ticks + self.revision != revision, timeout)
            return self._ticks + self.revision

    def _take(self, result: PassResult) -> None:
        """Takes the result of the pass: draws the blind sample, then starts to learn."""
        order = draw_order(result, self.seed)
        learning = SessionLearning(
            result,
            self._images,
            self._journal,
            multi_label=self.multi_label,
            seed=self.seed,
            publish=self._publish,
            lock=self._changed,
        )
        with self._changed:
            self._learning, self._order = learning, order
            self._added.begin(result)
            state, paths = self._journal.state, set(self._images.paths)
            if not any(path in paths for path in state.blind):
                blind = self._enlarged(default_size(len(order)))
                self._commit(LabelChange("draw the test sample", blind=(state.blind, blind)), quiet=True)
            learning.submit()
        self._tick()

    def _join(self, result: PassResult) -> None:
        """Takes a result with added images; near-duplicates of blind images are blind, as they would be trained on."""
        with self._changed:
            if self._learning is None or self._is_closed:
                return
            found, state = self._learning.join(result), self._journal.state
            if found:
                change = LabelChange("add to the test sample", blind=(state.blind, (*state.blind, *found)))
                self._journal.do(change, quiet=True)
            revision = self.revision = self.revision + 1
            self._learning.submit()
        self._write_table(revision)
        self._tick()

    def _publish(self, learnt: Learnt) -> None:
        with self._changed:
            if self._learning is not None and not self._is_closed:
                self._learning.take(learnt)
        self._tick()

    def _enlarged(self, count: int) -> tuple[str, ...]:
        if self._learning is None:
            raise OptionError("The test sample is drawn once all images are read.")
        stacks = [self._learning.result.stacks.members(image) for image in self._order]
        return enlarged(self._journal.state.blind, self._order, self._images.paths, stacks, count)

    def _paths_of(self, images: object) -> list[str]:
        numbers, paths = self._images.check(images), self._images.paths
        if self._learning is None:
            return [paths[image] for image in numbers]
        stacks = self._learning.result.stacks
        members = (member for image in numbers for member in stacks.members(image))
        return [paths[member] for member in dict.fromkeys(members)]

    def _commit(self, change: LabelChange, *, quiet: bool = False) -> None:
        self._journal.do(change, quiet=quiet)
        self._revised(change)

    def _revised(self, change: LabelChange) -> None:
        self.revision += 1
        self._changed.notify_all()
        if self._learning is not None and (change.answers or change.classes or change.blind):
            self._learning.submit()

    def _write_table(self, revision: int) -> None:
        """Writes the table unless another thread has written a later one meanwhile."""
        with self._writing:
            if self._written >= revision:
                return
            with self._changed:
                text, now = self._table.text(self._journal.state), self.revision
            self._table.write(text)
            self._written = now

    def _acknowledged(self, change: LabelChange, revision: int) -> dict[str, Any]:
        self._write_table(revision)
        numbers = (self._images.number_of(path) for path in change.paths)
        return {"revision": revision, "changed": [number for number in numbers if number is not None]}

    def act(self, action: Mapping[str, Any]) -> dict[str, Any]:
        """Carries out an action; it is on the disk before this returns.

        Args:
            action: document with the key "do", see ``actions.ACTIONS``.

        Returns:
            ``revision``, and ``changed``: numbers of the images whose labels changed.

        Raises:
            OptionError: the action is invalid; nothing changes.
            StaleAction: it names a class that does not exist any more; nothing changes.
            OutputError: it cannot be written; nothing changes.
        """
        with self._changed:
            given = ActionInput(self._journal.state, self.multi_label, self._paths_of, self._enlarged)
            change = change_of(action, given)
            if not change.is_empty:
                self._commit(change)
            revision = self.revision
        return self._acknowledged(change, revision)

    def undo(self) -> dict[str, Any]:
        """Undoes the last action, also of an earlier session; as ``act``.

        Raises:
            StaleAction: there is nothing to undo.
        """
        return self._step(back=True)

    def redo(self) -> dict[str, Any]:
        """Repeats the action that was undone last; as ``undo``."""
        return self._step(back=False)

    def _step(self, *, back: bool) -> dict[str, Any]:
        with self._changed:
            journal = self._journal
            if not (journal.done if back else journal.undone):
                raise StaleAction(f"There is nothing to {'undo' if back else 'redo'}.")
            change = journal.undo() if back else journal.redo()
            self._revised(change)
            revision = self.revision
        return self._acknowledged(change, revision)

    def _shown(self) -> Shown:
        learning = self._learning
        if learning is None:
            return Shown(self._images, self._journal.state, None, None)
        return Shown(self._images, self._journal.state, learning.result.stacks, learning.learnt)

    def images(self, view: str, start: int, count: int) -> dict[str, Any]:
        """A part of a view: ``total``, ``revision`` and ``items``.

        Args:
            view: see ``views.images_of_view``; or "cluster:K".
            start: first place.
            count: images, at most.

        Raises:
            OptionError: there is no such view.
        """
        with self._changed:
            stamp = (self.revision, len(self._images), self._learning is None)
            kept = self._views.get(view)
            if kept is None or kept[0] != stamp:
                kept = stamp, self._images_of(view)
                self._views[view] = kept
            part = kept[1][max(0, start) : max(0, start) + max(0, count)]
            return {"total": len(kept[1]), "revision": self.revision, "items": self._shown().items(part)}

    def _images_of(self, view: str) -> list[int]:
        kind, _, number = view.partition(":")
        if kind == "cluster" and number.isdecimal():
            return [] if self._learning is None else self._learning.cluster_images(int(number))
        return images_of_view(view, self._shown())

    def thumbnail(self, image: int, size: int) -> bytes:
        """A JPEG file, see ``image_list.Thumbnails.get``."""
        return self._thumbnails.get(self.address(image), size)

    def address(self, image: int) -> str:
        """The absolute path or URL of an image.

        Raises:
            OptionError: there is no image with this number.
        """
        return self._images.addresses[self._images.check([image])[0]]

    def state(self) -> dict[str, Any]:
        """The state document of the page, but for the training."""
        with self._changed:
            found = {
                "session": self.token,
                "revision": self.revision,
                "source": str(self._options.source),
                "labels_file": str(self.files.table),
                "edited_file": None if self._table.kept is None else str(self._table.kept),
                "images": len(self._images),
                "stacks": len(self._shown().first_images()),
                "multi_label": self.multi_label,
                "undo": self._journal.done[-1].text if self._journal.done else None,
                "redo": self._journal.undone[-1].text if self._journal.undone else None,
                "work": self._pass.progress.as_json() | {"failures": self._pass.failures()},
            }
            found["folders"] = [] if self._pass.progress.stage == "listing" else self._folders()
            suggested = {} if self._learning is None else self._learning.suggested(self.revision)
            images = None if self._pass.progress.stage in ("listing", "failed") else self._images
            return found | counts_of(self._journal.state, suggested, images) | learning_state(self._learning)

    def _folders(self) -> list[str]:
        if self._folder_names[0] != (self.revision, len(self._images)):
            names = folders_of(self._images.addresses, self._journal.state)
            self._folder_names = (self.revision, len(self._images)), names
        return self._folder_names[1]

    def clusters(self) -> list[dict[str, Any]]:
        """Groups of similar images: ``id``, ``size``, ``unlabelled``, ``examples``, ``suggested``; [] before ready."""
        with self._changed:
            return [] if self._learning is None else self._learning.clusters()

    def confirm(self, label: str | None, count: int) -> dict[str, Any]:
        """A page of images predicted as one class, most certain first: ``label``, ``total`` and ``items``.

        Args:
            label: the class; None for the one whose page is most certain.
            count: images of the page.
        """
        with self._changed:
            if self._learning is None:
                return queue_document(label, 0, [])
            label, total, images = self._learning.confirm(label, count, self.revision)
            return queue_document(label, total, self._shown().items(images))

    def ask(self, count: int) -> dict[str, Any]:
        """The images whose labels help the classifier most; ``total`` counts all unlabelled ones."""
        with self._changed:
            if self._learning is None:
                return queue_document(None, 0, [])
            images, total = self._learning.ask(count, self.revision)
            shown = self._shown()
            return queue_document(None, total, [shown.with_suggestions(item) for item in shown.items(images)])

    def blind(self, count: int) -> dict[str, Any]:
        """Images of the blind sample that have no blind label yet, without suggestions; ``total`` counts all."""
        with self._changed:
            left = [] if self._learning is None else self._learning.blind_images()[0]
            return queue_document(None, len(left), self._shown().items(left[:count], suggest=False))

    def mistakes(self, count: int, run: Path | None = None) -> dict[str, Any]:
        """Labelled images whose labels are probably wrong, with the more probable class; takes seconds at times.

        Args:
            count: images, at most; ``total`` counts all.
            run: folder of a finished run on these labels; labels that it contradicts come first.
        """
        found = [] if self._learning is None else self._learning.mistakes(run)
        with self._changed:
            return queue_document(None, len(found), self._shown().doubted(found[:count]))

    def knowledge(self) -> dict[str, Any]:
        """``accuracy`` on the blind sample, its ``curve`` over labels, ``forecast`` and ``words``."""
        with self._changed:
            if self._learning is None:
                return {"accuracy": None, "curve": [], "forecast": None, "words": "The images are being read."}
            return self._learning.knowledge()

    def export(self, kind: str, out: UserPath, **options: Any) -> dict[str, Any]:
        """Writes the labels for another program; the images stay as they are.

        Args:
            kind: "csv", "folders", "coco" or "label-studio".
            out: file, or for "folders" a new folder.
            **options: ``none=True`` also exports images answered with none of the classes, as class "none";
                ``how="link"`` links images of folders instead of copying them.

        Returns:
            ``kind``, ``out`` and ``count`` of labels written.

        Raises:
            OptionError: the kind or an option is unknown, or the folder is not empty.
            OutputError: it cannot be written.
        """
        with self._changed:
            chosen = labelled_images(self._journal.state, self._place, none_class=bool(options.pop("none", False)))
            classes = self._journal.state.names
        count = export_labels(kind, chosen, out, classes, multi_label=self.multi_label, **options)
        return {"kind": kind, "out": str(out), "count": count}

    def _place(self, path: str) -> tuple[str, tuple[int, int] | None] | None:
        """Address and size of the image with a path in the table."""
        if (image := self._images.number_of(path)) is None:
            return None
        learning = self._learning
        return self._images.addresses[image], None if learning is None else learning.result.size(image)

    def add_file(self, file: UserPath, label: str, source: str = "second look") -> dict[str, Any]:
        """Labels an image from outside the source, such as one that a trained model classified wrongly.

        If the session has an image with the same content, that one gets the label. Otherwise the image joins the others
        at once, and the classifier learns from it when its features are computed, in the background.

        Returns:
            As ``act``; ``id`` is the number of the image.

        Raises:
            OptionError: the label is not valid, or the images of the source are still being read.
            UnreadableImage: the file cannot be read.
        """
        address = absolute(user_address(file))
        key = content_key(read_image(address))
        with self._changed:
            if self._learning is None:
                raise OptionError("Images can be added once all images of the source are read.")
            name = class_name(label, multi_label=self.multi_label)
            image = self._images.number_at(address)
            image = self._added.number_of(key) if image is None else image
            image = self._added.add(address, key) if image is None else image
        return self.act({"do": "label", "images": [image], "label": name, "source": source}) | {"id": image}

    def find_image(self, data: bytes) -> int | None:
        """The number of the image with this content; None if the session has none, or has not read it yet."""
        with self._changed:
            return self._added.number_of(content_key(data))

    def load_labels(self, file: UserPath, kind: str) -> dict[str, Any]:
        """Takes labels from elsewhere, in one step of undo; labels of other images stay.

        Args:
            file: table, JSON document, or folder of class folders (which may be the source itself).
            kind: "csv", "folders", "coco" or "label-studio".

        Returns:
            As ``act``; ``num_unknown`` entries are for no image of the session, the first of which are ``unknown``.

        Raises:
            LabelError: the file is not of this kind.
            OptionError: the kind is unknown.
        """
        finder = ImageFinder(self._images, None if self._learning is None else self._learning.result.keys)
        found, lost = read_labels(file, kind, finder, self._images, multi_label=self.multi_label)
        with self._changed:
            text = f"take {len(found):,} labels from {Path(file).name}"
            change = change_of_answers(found, self._journal.state, text=text)
            if not change.is_empty:
                self._commit(change)
            revision = self.revision
        return self._acknowledged(change, revision) | {"unknown": lost[:20], "num_unknown": len(lost)}
