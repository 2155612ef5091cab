"""What the platform tells: runs, feedback, exports to import."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from nightshift.experience.v1 import experience_service_pb2 as pb
from nightshift.experience.v1 import resources_pb2 as resources
from nightshift_experience.importing.imports import Imports
from nightshift_experience.intake import Intake
from nightshift_experience.resources import ImportJobName, RunName, parse_project
from nightshift_experience.rpc import render
from nightshift_experience.rpc.convert import feedback_kind, feedback_time_us, feedback_value, run_record
from nightshift_experience.rpc.run_stream import RunStream
from nightshift_kit.clock import Clock
from nightshift_kit.errors import FieldInvalid, IdInvalid
from nightshift_kit.pages import decode_token, encode_token, page_size, query_digest
from nightshift_kit.rpc.context import current_call


class RecordHandlers:
    """Handlers of the platform's writes, and of reading imports."""

    intake: Intake
    imports: Imports
    clock: Clock

    async def RecordRun(self, request: pb.RecordRunRequest, context: Any) -> resources.Run:
        """See the proto."""
        project = parse_project(request.parent)
        record = run_record(request.run, project, self.clock.now())
        return render.run(await self.intake.record(project, record))

    async def RecordRuns(
        self, request_iterator: AsyncIterator[pb.RecordRunsRequest], context: Any
    ) -> pb.RecordRunsResponse:
        """See the proto."""
        return await RunStream(self.intake, self.clock).take_all(request_iterator)

    async def RecordFeedback(
        self, request: pb.RecordFeedbackRequest, context: Any
    ) -> pb.RecordFeedbackResponse:
        """See the proto."""
        project = parse_project(request.parent)
        name = RunName.parse(request.feedback.run, "feedback.run")
        if name.project != project:
            raise IdInvalid.at("feedback.run", "belongs to another project than parent")
        kind = feedback_kind(request.feedback.kind, "feedback.kind")
        value = feedback_value(request.feedback, "feedback.value")
        when_us = feedback_time_us(request.feedback, self.clock.now(), "feedback.feedback_time")
        known = await self.intake.feedback(project, name.run, kind, value, when_us)
        return pb.RecordFeedbackResponse(run_known=known)

    async def ImportRuns(self, request: pb.ImportRunsRequest, context: Any) -> resources.ImportJob:
        """See the proto."""
        project = parse_project(request.parent)
        job = await self.imports.start(
            project, request.directory, request.source, request.platform_root, actor=current_call().actor
        )
        return render.import_job(job)

    async def CancelImportJob(self, request: pb.CancelImportJobRequest, context: Any) -> resources.ImportJob:
        """See the proto."""
        name = ImportJobName.parse(request.name)
        return render.import_job(await self.imports.cancel(name.project, name.import_job))

    async def GetImportJob(self, request: pb.GetImportJobRequest, context: Any) -> resources.ImportJob:
        """See the proto."""
        name = ImportJobName.parse(request.name)
        return render.import_job(await self.imports.get(name.project, name.import_job))

    async def ListImportJobs(
        self, request: pb.ListImportJobsRequest, context: Any
    ) -> pb.ListImportJobsResponse:
        """See the proto."""
        project, size = parse_project(request.parent), page_size(request.page_size)
        digest = query_digest(method="ListImportJobs", parent=request.parent)
        position = decode_token(request.page_token, digest, (int, str))
        before = (int(position[0] or 0), str(position[1])) if position else None
        jobs = await self.imports.page(project, before, size + 1)
        last = jobs[size - 1] if len(jobs) > size else None
        return pb.ListImportJobsResponse(
            import_jobs=[render.import_job(job) for job in jobs[:size]],
            next_page_token=encode_token((last.start_us, last.job_id), digest) if last else "",
        )

    async def WatchImportJob(
        self, request: pb.WatchImportJobRequest, context: Any
    ) -> AsyncIterator[pb.WatchImportJobResponse]:
        """See the proto."""
        name = ImportJobName.parse(request.name)
        if request.after_seq < 0:
            raise FieldInvalid.at("after_seq", "must not be negative")
        async for job in self.imports.watch(name.project, name.import_job, request.after_seq):
            yield pb.WatchImportJobResponse(seq=job.seq, import_job=render.import_job(job))

    async def ListSkippedRecords(
        self, request: pb.ListSkippedRecordsRequest, context: Any
    ) -> pb.ListSkippedRecordsResponse:
        """See the proto."""
        project, size = parse_project(request.parent), page_size(request.page_size)
        digest = query_digest(method="ListSkippedRecords", parent=request.parent)
        position = decode_token(request.page_token, digest, (str,))
        rows = await self.imports.skipped(project, str(position[0]) if position else None, size + 1)
        return pb.ListSkippedRecordsResponse(
            skipped_records=[
                resources.SkippedRecord(path=path, reason=reason, detail=detail)
                for path, reason, detail in rows[:size]
            ],
            next_page_token=encode_token((rows[size - 1][0],), digest) if len(rows) > size else "",
        )
