// Hands each beat to COUNT sinks, to each of them as soon as it is ready; the next beat comes when all have it.
module edgesdk_fork #(
    parameter integer COUNT = 2
) (
    input  wire             clk,
    input  wire             rst,
    input  wire             s_valid,
    output wire             s_ready,
    output wire [COUNT-1:0] m_valid,
    input  wire [COUNT-1:0] m_ready
);
    reg [COUNT-1:0] done;

    wire [COUNT-1:0] now = done | m_ready;
    assign s_ready = &now;
    assign m_valid = {COUNT{s_valid}} & ~done;

    always @(posedge clk) begin
        if (s_valid) done <= s_ready ? {COUNT{1'b0}} : now;
        if (rst) done <= {COUNT{1'b0}};
    end
endmodule
