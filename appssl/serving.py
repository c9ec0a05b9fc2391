"""What MLflow loads when it serves a registered model: this file as code, and the stage's files. Nothing is pickled."""

from typing import Any

import mlflow
import numpy as np


class AppsslModel(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined]
    """Arrays as the plain view gives them to class probabilities; for ranking, user numbers to scores."""

    def load_context(self, context: Any) -> None:
        from pathlib import Path

        from appssl.stages.predict import load_array_model

        self._model = load_array_model(Path(context.artifacts["model"]))

    def predict(self, context: Any, model_input: np.ndarray, params: Any = None) -> np.ndarray:
        return self._model.predict_array(np.asarray(model_input))


mlflow.models.set_model(AppsslModel())
