"""One function a cause: from a case to a judgement, pure."""
