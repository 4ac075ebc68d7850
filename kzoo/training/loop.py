"""The training loop: any `keras.Model`'s `train_step`, any strategy, resumable at any step."""

import contextlib
import os
import signal
import threading
import time
import warnings

import keras
import tensorflow as tf

from kzoo.ops.distribute import sum_over_replicas
from kzoo.training.checkpoint import Checkpoints
from kzoo.training.distribution import GlobalBatches, distribute, is_chief, is_multi_worker
from kzoo.training.state import capture, restore
from kzoo.training.steps import Steps

_SECONDS_PER_CALL = 0.5


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite."""


class Loop:
    """Trains a compiled model, many steps per call of one `tf.function`.

    It does what `model.fit` does, with the same callbacks in the same order, and further:

    * Under a strategy with several replicas the result is that of one device, exactly: gradients
      are summed before they are clipped, and losses are averaged over the true global batch, also
      where the last one is uneven.
    * `accumulate` works under every strategy.
    * A run that was interrupted at any step goes on from its newest checkpoint and ends with the
      same weights, bit for bit on a CPU with `tf.config.experimental.enable_op_determinism`.

    Args:
        model: a compiled `keras.Model`, built under the strategy.
        data: a `kzoo.data.Pipeline`, a `GlobalBatches`, or a `tf.data.Dataset` of global batches.
        epochs: number of passes over the data.
        validation_data: as `data`; evaluated at the end of every epoch.
        callbacks: `keras.callbacks.Callback`s. Those of batches are called once for each call of
            several steps, with the number of the last, as with Keras's `steps_per_execution`.
        strategy: the `tf.distribute.Strategy`; None for the one in scope.
        accumulate: number of batches whose gradients make one optimizer step. Defaults to 1.
        jit_compile: whether to compile each step with XLA. Defaults to False, which is faster for
            convolutions on a CPU.
        steps_per_call: steps per call; "auto" takes as many as fill half a second.
        checkpoints: a `Checkpoints` or a folder; None for no checkpoints.
        checkpoint_every: number of steps between checkpoints, besides the one after each epoch.
        on_nonfinite: "stop" raises `NonFiniteLossError` where the loss is NaN or infinite;
            "continue" goes on.

    Attributes:
        interrupted: whether the run ended early, by SIGTERM or Ctrl-C, and saved its state.
        step: number of optimizer steps done.

    Example:

    >>> model.compile("adam", "mse")
    >>> history = Loop(model, dataset, epochs=2).run()
    """

    def __init__(
        self,
        model,
        data,
        epochs=1,
        validation_data=None,
        callbacks=(),
        strategy=None,
        accumulate=1,
        jit_compile=False,
        steps_per_call="auto",
        checkpoints=None,
        checkpoint_every=None,
        on_nonfinite="stop",
    ):
        _check_positive("epochs", epochs)
        _check_positive("accumulate", accumulate)
        if checkpoint_every is not None:
            _check_positive("checkpoint_every", checkpoint_every)
        if steps_per_call != "auto":
            _check_positive("steps_per_call", steps_per_call)
        if on_nonfinite not in ("stop", "continue"):
            raise ValueError(
                f'`on_nonfinite` must be "stop" or "continue". Received: {on_nonfinite!r}'
            )
        if getattr(model, "optimizer", None) is None:
            raise ValueError("`model` must be compiled with an optimizer.")
        self.model = model
        self.data = _batches(data)
        self.validation_data = None if validation_data is None else _batches(validation_data)
        self.epochs = epochs
        self.strategy = strategy or tf.distribute.get_strategy()
        self.steps_per_epoch = -(-self.data.steps_per_epoch // accumulate)
        self.checkpoint_every = checkpoint_every
        self.on_nonfinite = on_nonfinite
        self.accumulate = accumulate
        folder = isinstance(checkpoints, str | os.PathLike)
        self.checkpoints = Checkpoints(checkpoints) if folder else checkpoints
        self._check_replicas(jit_compile)
        self._pace = _Pace(steps_per_call, is_multi_worker(self.strategy))
        with self.strategy.scope():
            build(model, self.data.element_spec)
            self._steps = Steps(model, self.strategy, accumulate, jit_compile, self._read())
            self._any_worker = tf.function(self._sum_over_workers)
        self._callbacks = list(callbacks)
        self._signalled = False
        self.interrupted = False
        self.step = 0

    def run(self, resume=False):
        """Trains to the last epoch.

        Args:
            resume: whether to go on from the newest checkpoint, if there is one.

        Returns:
            `keras.callbacks.History` of the epochs that this call has finished.
        """
        with self.strategy.scope(), self._signals():
            callbacks = keras.callbacks.CallbackList(
                self._callbacks,
                add_history=True,
                model=self.model,
                epochs=self.epochs,
                steps=self.steps_per_epoch,
                verbose=0,
            )
            self.model.stop_training = False
            callbacks.on_train_begin()
            # After it, because Keras's callbacks begin their counts anew there.
            epoch, start = self._restore() if resume and self.checkpoints else (0, 0)
            logs = {}
            while epoch < self.epochs and not self.model.stop_training and not self.interrupted:
                logs, finished = self._run_epoch(callbacks, epoch, start)
                if finished:
                    epoch, start = epoch + 1, 0
                    self._save(epoch if not self.model.stop_training else self.epochs, 0)
            if not self.interrupted:
                self.model.optimizer.finalize_variable_values(self.model.trainable_variables)
            callbacks.on_train_end(logs)
        return self.model.history

    def evaluate(self, data, callbacks=None):
        """Returns {metric: value} over all batches of `data`."""
        data = _batches(data)
        with self.strategy.scope():
            self.model.reset_metrics()
            if callbacks:
                callbacks.on_test_begin()
            iterator = iter(distribute(self.strategy, data, 0, 0))
            self._steps.test(iterator, tf.constant(data.steps_per_epoch))
            logs = self._metrics()
            if callbacks:
                callbacks.on_test_end(logs)
        return logs

    def _run_epoch(self, callbacks, epoch, start):
        """Trains from step `start` of an epoch; returns (logs, whether the epoch is finished)."""
        callbacks.on_epoch_begin(epoch)
        if start == 0:
            self.model.reset_metrics()
        data = self._epoch_data(epoch, start)
        step, logs = start, {}
        while step < self.steps_per_epoch:
            steps = self._pace.steps(self._steps_until_stop(step))
            callbacks.on_train_batch_begin(step)
            with self._pace.measuring(steps):
                failed = self._steps.train(
                    data,
                    tf.constant(steps),
                    tf.constant(step * self.accumulate),
                    tf.constant(self.data.steps_per_epoch),
                )
                logs = self._metrics()
            self._check_finite(int(failed))
            step += steps
            self.step += steps
            callbacks.on_train_batch_end(step - 1, logs)
            self.interrupted = self._is_signalled()
            if step < self.steps_per_epoch and (self._save_is_due() or self.interrupted):
                self._save(epoch, step)
            if step < self.steps_per_epoch and self.interrupted:
                return logs, False
            if self.model.stop_training:
                break
        if self.validation_data is not None:
            validation = self.evaluate(self.validation_data, callbacks)
            logs |= {f"val_{name}": value for name, value in validation.items()}
        if getattr(self.model.optimizer, "skip_nonfinite", False):
            logs["skipped_steps"] = int(self.model.optimizer.skipped_steps.numpy())
        callbacks.on_epoch_end(epoch, logs)
        return logs, True

    def _read(self):
        """How a step reads its batch; None where it takes it from an iterator.

        Examples that lie in memory as they are need no input pipeline: the step gathers them.
        """
        one_device = self.strategy.num_replicas_in_sync == 1 and not is_multi_worker(self.strategy)
        if not one_device or not getattr(self.data, "in_memory", False):
            return None
        return self.data.read

    def _epoch_data(self, epoch, start):
        if self._steps.reads:
            return self.data.epoch(epoch)
        return iter(distribute(self.strategy, self.data, epoch, start * self.accumulate))

    def _steps_until_stop(self, step):
        """Steps from here to the end of the epoch or the next checkpoint."""
        left = self.steps_per_epoch - step
        if self.checkpoints is None or self.checkpoint_every is None:
            return left
        return min(left, self.checkpoint_every - self.step % self.checkpoint_every)

    def _save_is_due(self):
        return self.checkpoint_every is not None and self.step % self.checkpoint_every == 0

    def _save(self, epoch, step):
        """Writes a checkpoint from which the run goes on at `step` of `epoch`."""
        if self.checkpoints is None:
            return
        # Every worker reads the variables, which may take a collective; one writes.
        arrays, meta = capture(self.model, self._callbacks)
        if is_chief(self.strategy):
            position = {"epoch": epoch, "step_in_epoch": step}
            self.checkpoints.save(self.step, arrays, meta | position)

    def _restore(self):
        latest = self.checkpoints.latest()
        if latest is None:
            return 0, 0
        arrays, meta = latest
        restore(self.model, self._callbacks, arrays, meta)
        self.step = meta["step"]
        return meta["epoch"], meta["step_in_epoch"]

    def _metrics(self):
        return {name: float(value) for name, value in self.model.get_metrics_result().items()}

    def _check_finite(self, failed):
        if failed >= 0 and self.on_nonfinite == "stop":
            raise NonFiniteLossError(
                f"The loss is not finite at step {self.step + failed + 1}. The newest checkpoint "
                "is from before it. Lower the learning rate, clip the gradients, or pass "
                '`on_nonfinite="continue"`.'
            )

    def _check_replicas(self, jit_compile):
        """Refuses what Keras 3 or XLA get wrong under several replicas."""
        if self.strategy.num_replicas_in_sync == 1:
            return
        if jit_compile and not tf.config.list_logical_devices("GPU"):
            raise ValueError("`jit_compile` does not work with several replicas on CPUs.")
        if any(_is_local_batch_norm(layer) for layer in self.model._flatten_layers()):
            warnings.warn(
                "The model has a BatchNormalization with synchronized=False: each replica "
                "normalizes by its own share of the batch, so results depend on their number.",
                stacklevel=3,
            )
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        refused = ["gradient_accumulation_steps"]
        refused += ["ema_overwrite_frequency"] if optimizer.use_ema else []
        for name in refused:
            if getattr(optimizer, name):
                raise ValueError(
                    f"The optimizer's `{name}` does not work under several replicas in Keras 3. "
                    "Use `accumulate` of the loop, or an average without overwriting."
                )

    def _is_signalled(self):
        """Whether a signal has asked any worker to end: they must end together."""
        if not is_multi_worker(self.strategy):
            return self._signalled
        return float(self._any_worker(tf.constant(float(self._signalled)))) > 0

    def _sum_over_workers(self, value):
        # The identity gives each replica a copy on its own device, which the collective wants.
        total = self.strategy.run(lambda: sum_over_replicas([tf.identity(value)])[0])
        return self.strategy.experimental_local_results(total)[0]

    @contextlib.contextmanager
    def _signals(self):
        """SIGTERM and the first Ctrl-C end the run after the current call, with a checkpoint."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def interrupt(number, frame):
            if self._signalled and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._signalled = True

        numbers = (signal.SIGTERM, signal.SIGINT)
        previous = [signal.signal(number, interrupt) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, previous, strict=True):
                signal.signal(number, handler)


def build(model, element_spec):
    """Creates all variables of a compiled model, its metrics and its optimizer.

    Inside a strategy this must come before the first batch, whose shape may be uneven.
    """
    batch = keras.tree.map_structure(lambda spec: _Symbol(spec), element_spec)
    # Keras has no public call that builds the metrics and the loss of a compiled model.
    model._symbolic_build(data_batch=batch)
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)


class _Symbol:
    """Shape and dtype of a batch, as `_symbolic_build` wants them."""

    def __init__(self, spec):
        self.shape = (None, *spec.shape[1:])
        self.dtype = spec.dtype


class _Pace:
    """How many steps a call takes, so that calls last about `_SECONDS_PER_CALL`."""

    def __init__(self, steps_per_call, multi_worker):
        # Workers must take the same number of steps, so theirs cannot depend on a clock.
        self._fixed = 32 if multi_worker and steps_per_call == "auto" else steps_per_call
        self._auto = self._fixed == "auto"
        self._next = 1 if self._auto else self._fixed
        self._traced = False

    def steps(self, limit):
        return min(self._next, limit)

    @contextlib.contextmanager
    def measuring(self, steps):
        begin = time.perf_counter()
        yield
        if not self._auto:
            return
        if self._traced:
            rate = steps / (time.perf_counter() - begin)
            self._next = max(1, min(int(rate * _SECONDS_PER_CALL), 8 * self._next))
        else:
            # The first call has traced the step; its time says nothing.
            self._traced, self._next = True, 8


def _is_local_batch_norm(layer):
    return isinstance(layer, keras.layers.BatchNormalization) and not layer.synchronized


def _batches(data):
    return GlobalBatches(data) if isinstance(data, tf.data.Dataset) else data


def _check_positive(name, value):
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer. Received: {value!r}")
