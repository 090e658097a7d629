"""The states of a training run in its folder, from which it resumes."""

from pathlib import Path

STATE_FORMAT = 2  # 2: the optimizer keeps the matrices of one size together


class RunStates:
    """The latest states of a training run in a folder; a write that is cut short is ignored."""

    def __init__(self, folder):
        # Here, since it takes most of a second to import and only training needs it.
        import orbax.checkpoint as ocp

        self.ocp = ocp
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, create=True, enable_async_checkpointing=False
        )
        self.manager = ocp.CheckpointManager(Path(folder).absolute(), options=options)

    def save(self, state, progress):
        """Keep the arrays of a state and the JSON values that say where the run stands."""
        progress = progress | {"format": STATE_FORMAT}
        self.manager.save(
            (self.manager.latest_step() or 0) + 1,
            args=self.ocp.args.Composite(
                state=self.ocp.args.StandardSave(state), progress=self.ocp.args.JsonSave(progress)
            ),
            force=True,
        )

    def restore(self, like):
        """The latest state, shaped `like` a fresh one, and its progress, or None.

        Raises:
          ValueError: another version of the package wrote it.
        """
        latest = self.manager.latest_step()
        if latest is None:
            return None

        def read(**parts):
            return self.manager.restore(latest, args=self.ocp.args.Composite(**parts))

        progress = read(progress=self.ocp.args.JsonRestore())["progress"]
        if (found := progress.pop("format", None)) != STATE_FORMAT:
            raise ValueError(
                f"{self.manager.directory} holds states of format {found}, and this version of "
                f"mlip-jax goes on from format {STATE_FORMAT}; start a new run, from its "
                "model.safetensors with --init if you like, or install the version that wrote them"
            )
        return read(state=self.ocp.args.StandardRestore(like))["state"], progress

    def close(self):
        self.manager.close()
