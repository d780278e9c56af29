// First in, first out: DEPTH beats in a memory and one in its output register. The memory is read in a clocked process, so that
// block RAM can hold it. 2**ABITS >= DEPTH.
module edgesdk_fifo #(
    parameter integer WIDTH = 8,
    parameter integer DEPTH = 16,
    parameter integer ABITS = 4
) (
    input  wire             clk,
    input  wire             rst,
    input  wire             s_valid,
    output wire             s_ready,
    input  wire [WIDTH-1:0] s_data,
    output reg              m_valid,
    input  wire             m_ready,
    output reg  [WIDTH-1:0] m_data
);
    localparam [ABITS:0] FULL = DEPTH[ABITS:0];
    localparam integer LAST_COUNT = DEPTH - 1;
    localparam [ABITS:0] LAST = LAST_COUNT[ABITS:0];

    reg [WIDTH-1:0] memory [0:DEPTH-1];
    reg [ABITS-1:0] head, tail;
    reg [ABITS:0]   count;

    assign s_ready = count != FULL;
    wire put = s_valid && s_ready;
    wire get = (!m_valid || m_ready) && count != 0;

    always @(posedge clk) begin
        if (put) memory[tail] <= s_data;
        if (get) m_data <= memory[head];
    end

    always @(posedge clk) begin
        if (put) tail <= {1'b0, tail} == LAST ? {ABITS{1'b0}} : tail + 1'b1;
        if (get) head <= {1'b0, head} == LAST ? {ABITS{1'b0}} : head + 1'b1;
        if (put && !get) count <= count + 1'b1;
        if (get && !put) count <= count - 1'b1;
        if (!m_valid || m_ready) m_valid <= count != 0;
        if (rst) begin
            head <= {ABITS{1'b0}};
            tail <= {ABITS{1'b0}};
            count <= {(ABITS + 1){1'b0}};
            m_valid <= 1'b0;
        end
    end
endmodule
